"""Runs of configs/sysu_hcp.py that answer together, as SYSU-HCP's eight networks did at VQA-Med 2021.

    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py --config.members=runs/a,runs/b --mode=eval --workdir=runs/both
    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py --config.members=runs/a,runs/b --mode=predict --split=test \\
        --workdir=runs/both
    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py:vqa_med_2021 …      pictures of 384 for all, as the original

Members are work directories of trained or converted runs. Networks, sizes and training data may differ, the classes may not.
Their order decides ties: the earlier vote wins. The published one is resnet50, resnet50HGap, resnest50, resnest50HGap, vgg16,
vgg16HGap, vgg19, vgg19HGap, which scored 0.382 accuracy and 0.416 BLEU on the test set of 2021.

The folder gets the challenge's file (`predictions/SPLIT_0_imageclef.txt`, lines `image|answer`), all answers with each member's
vote, and in metrics.jsonl the scores, the agreement and each member's own accuracy. Later `--mode=eval` and `--mode=predict`
need no config, and `python -m jaxvqa.report` shows all of it.

The released script is effectively unmasked; `--config.data.mask_file=modelmask.json` masks as was meant. With
`--config.reading=as_written` questions stay without an answer (`"unanswered"`) where the original's script would stop.
"""

import ml_collections

from configs import common

VARIANTS = ("vqa_med_2021",)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant."""
    variants = common.parse_variants(arg, VARIANTS)
    config = ml_collections.ConfigDict()
    config.name = "-".join(["sysu_hcp_ensemble", *variants])
    config.members = ""  # work directories, joined by commas
    config.vote = "majority"  # majority | mean_probabilities, of the allowed classes
    config.reading = "intended"  # of masks, by a majority: intended | as_written
    config.flip = False  # logits are the mean over the picture and its mirror image
    config.repair_names = False  # writes answers without the garbling of six names
    config.batch_size = 0  # questions a step over all devices; 0: as the members evaluate
    config.compilation_cache = "~/.cache/jaxvqa/xla"  # empty: none; JAX_COMPILATION_CACHE_DIR and XDG_CACHE_HOME win
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    # Where a field is empty or 0, members keep their own; see common.picture_data.
    data = config.data = ml_collections.ConfigDict()
    data.dir = ""
    data.examples = ""
    data.images = ""
    data.image_splits = ""
    data.question_types = ()
    data.limit = 0
    data.eval_size = 384 if variants else 0  # pixels
    data.mask_file = ""  # the original's modelmask.json; empty: no masks
    return config

"""Runs of configs/sysu_hcp.py that answer together, as SYSU-HCP's eight networks did at VQA-Med 2021.

    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py --config.members=runs/a,runs/b --mode=eval --workdir=runs/both
    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py --config.members=runs/a,runs/b --mode=predict --split=test \\
        --workdir=runs/both
    python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py:vqa_med_2021 …      images of 384 for all, as the original

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

from jaxvqa.configs import common

VARIANTS = ("vqa_med_2021",)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant."""
    variants = common.parse_variants(arg, VARIANTS)
    base = common.base()
    config = ml_collections.ConfigDict({name: base[name] for name in ("compilation_cache", "mesh")})
    config.name = "-".join(["sysu_hcp_ensemble", *variants])
    config.update({"members": "", "vote": "majority", "reading": "intended", "flip": False, "repair_names": False})
    # Where a field is empty or 0, members keep their own.
    config.batch_size = 0
    config.data = ml_collections.ConfigDict(
        dict.fromkeys(("dir", "examples", "images", "image_splits", "mask_file"), "")
    )
    config.data.update({"question_types": (), "limit": 0, "eval_size": 384 if variants else 0})
    return config

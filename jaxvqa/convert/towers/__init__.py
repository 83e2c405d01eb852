"""The keys of the towers, a file for each of `jaxvqa/models/towers` that has checkpoints; those that are published alone."""

from jaxvqa.convert.original import System
from jaxvqa.convert.pretrained import Tower
from jaxvqa.convert.towers import bert, clip, efficientnet_lite, gpt2

TOWERS: dict[str, Tower] = {tower.kind: tower for tower in (gpt2.TOWER, bert.TOWER, clip.VISION_TOWER, clip.TEXT_TOWER)}
"""Name -> tower."""

_CONFIG = "configs/flamingo.py:vqa_rad"
SYSTEMS = {
    "gpt2": System(gpt2.TOWER.original, _CONFIG, part="language", options=("lm_head", "tokenizer")),
    "bert": System(bert.TOWER.original, _CONFIG, part="language", options=("tokenizer",)),
    "clip_vision": System(clip.VISION_TOWER.original, _CONFIG, part="vision", options=("activation",)),
    "efficientnet_lite0": System(
        efficientnet_lite.ORIGINAL, "configs/blip_retrieval.py:vqa_med_2019", part="vision_tower/network"
    ),
}
"""Those that `config.init_from` of configs/flamingo.py and configs/blip_retrieval.py starts from."""

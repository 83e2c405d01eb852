"""A tiny run of each system that answers, with made-up numbers: what it says means nothing, but is the same each time."""

import pytest

from jaxvqa import configs
from tests import runs

NARROW = {"data.image_size": 32, "data.vocab_size": 300, "model.vision_sizes.patch": 8, "init_from.model.without": ""}

SYSTEMS = {
    "rwsan": (runs.RWSAN, {}),
    "proposed": ("configs/rwsan.py:proposed,small", {"data.max_regions": 20}),
    "blind": ("configs/rwsan.py:blind,small", {}),
    "cmsa": ("configs/cmsa.py:small", {}),
    "sysu_hcp": ("configs/sysu_hcp.py:small,resnet18", {}),
    "flamingo": ("configs/flamingo.py:small", {"generate.max_new_tokens": 3}),
    "flamingo_captions": ("configs/flamingo.py:captions,small", {"generate.max_new_tokens": 3}),
    "flamingo_classify": ("configs/flamingo.py:classify,small", {"generate.max_new_tokens": 3}),
    "few_shot": (
        "configs/flamingo.py:small",
        {"generate.max_new_tokens": 3, "data.shots": 1, "data.shots_by": "image", "data.max_prompt": 90},
    ),
    "blip_vqa": ("configs/blip_vqa.py:small", NARROW | {"generate.max_length": 4}),
    "blip_caption": (
        "configs/blip_caption.py:pixels,small",
        NARROW | {"generate.max_length": 9, "generate.min_length": 1},
    ),
    "retrieval": ("configs/blip_pretrain.py:small", NARROW),
}
"""Name -> a config, and what makes it smaller."""


def write(phantoms, folder, name):
    """Writes the run of that name."""
    file, smaller = SYSTEMS[name]
    config = configs.load(file)
    changes = runs.SHALLOW if "rwsan" in file else {}
    part = "captions" if "caption" in name or name == "retrieval" else "questions"
    changes |= {
        "data.dir": phantoms,
        "data.examples": f"phantom_vqa/tiny_{part}",
        "data.images": "phantom_vqa/tiny_images",
    }
    changes |= {"data.limit": 16, **smaller}
    if "answers" in config.data:
        changes["data.answers.min_count"] = 1
    known = configs.settable(config)
    configs.override(config, [(key, str(value)) for key, value in changes.items() if key in known])
    if "vocabulary_parts" in config.data:
        with config.unlocked():
            config.data.vocabulary_parts = ()
    runs.write(config, folder, step=1)


@pytest.fixture(scope="session")
def asked_run(phantoms, tmp_path_factory):
    """A function from the name of a run to its folder, written once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write(phantoms, made[name], name)
        return made[name]

    return of

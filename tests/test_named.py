"""Names of things in a user's own package: what is found, and what a message says where it is not."""

import re
import sys

import pytest

from jaxvqa import configs, evaluators, fields, models, tasks
from jaxvqa.errors import ConfigError, DataError
from tfds_builders.build import build_command, builder_class

SOURCE = '''
import flax.linen as nn
from jaxvqa.tasks.answer_classification import AnswerClassification
from tfds_builders.easy_vqa.easy_vqa_dataset_builder import Builder as Base

class MyNet(nn.Module):
    """A network.

    Attributes:
      sharpness: how sharp.
    """

    num_answers: int
    sharpness: float = 0.5

class MyTask(AnswerClassification):
    pass

class Other(Base):
    name = "other_data"

def evaluator(context):
    return context

number = 3
'''


@pytest.fixture(autouse=True, scope="module")
def package(tmp_path_factory):
    """A package with one of each; once, since TFDS takes each name of a builder once."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ownpackage").mkdir()
    (folder / "ownpackage/things.py").write_text(SOURCE)
    (folder / "ownpackage/broken.py").write_text("import nothing_of_that_name\n")
    (folder / "ownpackage/half.py").write_text("import sys\nsys.nothing\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ownpackage"]:
        del sys.modules[name]


def test_each_kind_is_found_by_its_place():
    assert tasks.task_class("ownpackage.things:MyTask").__name__ == "MyTask"
    assert evaluators.evaluator("ownpackage.things:evaluator")(3) == 3
    model = models.build({"name": "ownpackage.things:MyNet", "sharpness": 2.5}, num_answers=4)
    assert (model.sharpness, model.num_answers) == (2.5, 4)
    assert models.default_fields("ownpackage.things:MyNet") == {"sharpness": 0.5}
    assert builder_class("ownpackage.things:Other").name == "other_data"


def test_a_config_of_ones_own_things_is_checked_and_explained():
    config = configs.load("configs/rwsan.py:small")
    with config.unlocked():
        config.task = "ownpackage.things:MyTask"
        config.model = {"name": "ownpackage.things:MyNet", "sharpness": 0.5}
        config.evals.val.type = "ownpackage.things:evaluator"
    fields.final(config, training=True)
    assert fields.meaning(config, "model.sharpness") == "how sharp."
    assert evaluators.has_own_measures("ownpackage.things:evaluator")
    assert not evaluators.has_own_measures("vqa")


ENDS = [
    (
        "ownpackage.thing:X",
        "'ownpackage.thing' cannot be imported: ModuleNotFoundError: No module named 'ownpackage.thing'",
    ),
    ("ownpackage.broken:X", "'ownpackage.broken' cannot be imported: ModuleNotFoundError: No module named 'nothing_of"),
    ("ownpackage.half:X", "'ownpackage.half' cannot be imported: AttributeError: module 'sys' has no"),
    (":X", "'' cannot be imported"),
    ("ownpackage.things:MyNett", "ownpackage.things has no 'MyNett'. Did you mean 'MyNet'?"),
    ("ownpackage.things:number", "it is of the type int"),
]


@pytest.mark.parametrize(("name", "end"), ENDS)
@pytest.mark.parametrize("field", ["task", "model.name", "evals.val.type"])
def test_what_is_not_there_is_one_message_of_every_field(name, end, field):
    config = configs.load("configs/rwsan.py:small")
    configs.override(config, [(field, name), ("batch_size", "0")])
    with pytest.raises(ConfigError) as caught:
        fields.final(config)
    (line,) = [line for line in str(caught.value).splitlines() if f"config.{field} " in line]
    assert line.strip().startswith(f"config.{field} is {name!r}; expected a")
    assert end in line
    assert "config.batch_size" in str(caught.value)
    assert fields.meaning(config, "model.width") is not None  # --help goes on


@pytest.mark.parametrize(("name", "end"), [*ENDS, ("ownpackage.things:MyNet", "it is the class MyNet")])
def test_so_it_is_of_builders(name, end):
    with pytest.raises(
        DataError, match=f"The data set is {re.escape(repr(name))}; expected a builder.*{re.escape(end)}"
    ):
        builder_class(name)


def test_a_class_of_another_kind_is_refused():
    for find, name in ((tasks.task_class, "MyNet"), (models.model_class, "MyTask")):
        with pytest.raises(ConfigError, match=f"it is the class {name}"):
            find(f"ownpackage.things:{name}")


def test_an_unknown_name_says_how_ones_own_are_named(tmp_path):
    for find in (tasks.task_class, models.model_class, evaluators.evaluator):
        with pytest.raises(ConfigError, match=r"choose .*package\.module:Name"):
            find("nothing")
    with pytest.raises(DataError, match=r"No data set 'nothing': choose .*package\.module:Name"):
        builder_class("nothing")
    assert "tfds_builders.build other_data" in build_command("other_data", ["questions"], tmp_path)

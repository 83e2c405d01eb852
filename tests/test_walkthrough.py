"""Every command in README and docs is run: here, in the order a reader would take, with small sizes instead of large ones."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline
from jaxvqa import checkpoints
from jaxvqa.convert import mtpt
from jaxvqa.convert.original import Checkpoint
from jaxvqa.models.towers.resnet import ResNet
from tests.test_docs import COMMANDS, ROOT
from tfds_builders.pubmed_figures import demo

BRANCHES = (
    "--config.init_from.abdomen.workdir=runs/abdomen --config.init_from.head.workdir=runs/brain "
    "--config.init_from.chest.workdir=runs/chest"
)

# What the pages say -> what is run. The order matters: later commands read what earlier ones wrote.
WALK = {
    "python -m tfds_builders.build": "--help",
    "python -m tfds_builders.build phantom_vqa": "phantom_vqa",
    "python -m jaxvqa.main --config=configs/rwsan.py --help": "--config=configs/rwsan.py --help",
    "python -m jaxvqa.main --config=configs/rwsan.py --workdir=runs/rwsan": (
        "--config=configs/rwsan.py:small --workdir=runs/rwsan"
    ),
    "python -m jaxvqa.main --mode=eval --workdir=runs/rwsan": "--mode=eval --workdir=runs/rwsan",
    "python -m jaxvqa.main --mode=predict --split=test --workdir=runs/rwsan": (
        "--mode=predict --split=test --workdir=runs/rwsan"
    ),
    "python -m jaxvqa.explain --workdir=runs/rwsan --output=runs/rwsan/explained": (
        "--workdir=runs/rwsan --output=runs/rwsan/explained"
    ),
    "python -m jaxvqa.report --workdir=runs/rwsan": "--workdir=runs/rwsan",
    **{
        f"python -m jaxvqa.ask --workdir=runs/rwsan {words}": f"--workdir=runs/rwsan {words}"
        for words in (
            'scan.png "is there a mass?" --regions=scan.npz',
            'scan.png "is there a mass?" --regions=scan.npz --explain=looked.png',
        )
    },
    "python -m jaxvqa.main --config=configs/rwsan.py:proposed --workdir=runs/proposed": (
        "--config=configs/rwsan.py:proposed,small --workdir=runs/proposed"
    ),
    "python -m jaxvqa.main --config=configs/flamingo.py:proposed --workdir=runs/flamingo_proposed": (
        "--config=configs/flamingo.py:proposed,small --workdir=runs/flamingo_proposed"
    ),
    'python -m jaxvqa.ask --workdir=runs/proposed scan.png "is there a mass?" --explain=looked.png': (
        '--workdir=runs/proposed scan.png "is there a mass?" --explain=looked.png'
    ),
    (
        "python -m jaxvqa.report --workdir=runs/DATE_first_run/rwsan --baseline=runs/DATE_first_run/blind "
        "--curve=docs/phantom_curve.svg"
    ): "--workdir=runs/rwsan --baseline=runs/rwsan --curve=curve.svg",
    "python -m launch.local --processes=2 -- --config=… --workdir=…": (
        "--processes=2 -- --config=configs/rwsan.py:small --workdir=runs/two"
    ),
    "python -m launch.local --processes=2 --devices=2 -- --config=… --workdir=…": (
        "--processes=2 --devices=2 -- --config=configs/rwsan.py:small --workdir=runs/four"
    ),
    "python -m jaxvqa.main --config=… --workdir=…": "--config=configs/rwsan.py:small --workdir=runs/alone",
    "python -m tfds_builders.build table --manual_dir=DIR": "table --manual_dir=own",
    "python -m jaxvqa.main --config=configs/cmsa.py:table --workdir=runs/table": (
        "--config=configs/cmsa.py:table,small --workdir=runs/table"
    ),
    "python -m tfds_builders.build vqa_v2 --manual_dir=DIR": "vqa_v2 --manual_dir=files",
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2": "--config=configs/rwsan.py:vqa_v2,small",
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --workdir=runs/vqa_v2": (
        "--config=configs/rwsan.py:vqa_v2,small --workdir=runs/vqa_v2"
    ),
    "python -m jaxvqa.convert --system=rwsan --from=WORKDIR --to=epoch16.pkl": (
        "--system=rwsan --from=runs/vqa_v2 --to=epoch16.pkl"
    ),
    (
        "python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=runs/original --answers=answer_dict.json "
        "--questions Q1.json Q2.json …"
    ): "--system=rwsan --from=epoch16.pkl --to=runs/original --answers=answer_dict.json --questions {questions}",
    "python -m jaxvqa.main --mode=eval --workdir=runs/original": "--mode=eval --workdir=runs/original",
    "python -m jaxvqa.convert --system=rwsan --from=runs/original --to=back.pkl": (
        "--system=rwsan --from=runs/original --to=back.pkl"
    ),
    (
        "python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=WORKDIR --answers=answer_dict.json "
        "--questions FILE …"
    ): "--system=rwsan --from=back.pkl --to=runs/again --answers=answer_dict.json --questions {questions}",
    "python -m jaxvqa.main --mode=eval --workdir=WORKDIR": "--mode=eval --workdir=runs/again",
    "python -m jaxvqa.main --mode=predict --split=test --workdir=WORKDIR": (
        "--mode=predict --split=test --workdir=runs/again"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --mode=compile --config.compile.target=v5e:2x4": (
        "--config=configs/rwsan.py:vqa_v2,small --mode=compile --config.compile.target=v5e:2x4"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --mode=compile --config.compile.target=…": (
        "--config=configs/rwsan.py:vqa_v2,small --mode=compile --config.compile.target=local"
    ),
    (
        "python -m jaxvqa.main --config=configs/flamingo.py:mimic_cxr --mode=compile --config.batch_size=128 "
        "--config.data.max_tokens=512 --config.compile.target=h100:8"
    ): "--config=configs/flamingo.py:mimic_cxr,small --mode=compile --config.batch_size=8 --config.compile.target=local",
    (
        "python -m jaxvqa.main --mode=compile --config=configs/sysu_hcp.py:vqa_med_2021,resnest50 "
        "--config.dtype=bfloat16 --config.batch_size=2048 --config.compile.target=v5e:2x4"
    ): (
        "--mode=compile --config=configs/sysu_hcp.py:vqa_med_2021,resnest50,small --config.dtype=bfloat16 "
        "--config.batch_size=16 --config.compile.target=local"
    ),
    **{
        f"python -m jaxvqa.main --mode=compile --config=configs/blip_pretrain.py:published --config.dtype=bfloat16 {sizes}": (
            "--mode=compile --config=configs/blip_pretrain.py:published,small --config.dtype=bfloat16 "
            f"--config.batch_size=16 --config.model.vision_sizes.remat={remat} --config.compile.target=local"
        )
        for remat, sizes in enumerate(
            ("--config.compile.target=h100:8", "--config.batch_size=480 --config.compile.target=v5e:4x4")
        )
    },
    "python -m tfds_builders.build mtpt": "mtpt --config={mtpt}",
    **{
        f"python -m jaxvqa.main --config=configs/mtpt.py:{organ} --workdir=runs/{organ}": (
            f"--config=configs/mtpt.py:{organ},small --workdir=runs/{organ}"
            f" --config.data.examples=mtpt/tiny_phantom_{organ}"
            f" --config.data.question_list=mtpt/tiny_phantom_{organ}_questions"
        )
        for organ in ("abdomen", "brain", "chest")
    },
    f"python -m jaxvqa.main --config=configs/cmsa.py {BRANCHES}": f"--config=configs/cmsa.py:small {BRANCHES}",
    "python -m jaxvqa.main --config=configs/sysu_hcp.py --workdir=runs/sysu_hcp": (
        "--config=configs/sysu_hcp.py:small --workdir=runs/sysu_hcp"
    ),
    "python -m jaxvqa.ask --workdir=runs/sysu_hcp scan.png": "--workdir=runs/sysu_hcp scan.png",
    "python -m jaxvqa.ask --workdir=runs/sysu_hcp FOLDER --output=answers.csv": (
        "--workdir=runs/sysu_hcp . --output=answers.csv"
    ),
    "python -m benchmarks.ask runs/vqa_rad": "runs/sysu_hcp",
    "python -m jaxvqa.convert --system=sysu_hcp --from=runs/vgg16 --to=vgg16_epoch-49.pth": (
        "--system=sysu_hcp --from=runs/sysu_hcp --to=sysu_hcp.pth"
    ),
    (
        "python -m jaxvqa.convert --system=sysu_hcp --from=vgg16_epoch-49.pth --to=runs/vgg16 "
        "--config=configs/sysu_hcp.py:vqa_med_2021,vgg16 --answers=disease2id.json --masks=modelmask.json"
    ): "--system=sysu_hcp --from=sysu_hcp.pth --to=runs/sysu_again --config=configs/sysu_hcp.py:small --masks=modelmask.json",
    (
        "python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py --config.members=runs/a,runs/b --mode=eval "
        "--workdir=runs/both"
    ): "--config=configs/sysu_hcp_ensemble.py --config.members=runs/sysu_hcp,runs/sysu_again --mode=eval --workdir=runs/both",
    (
        "python -m jaxvqa.main --config=configs/sysu_hcp_ensemble.py:vqa_med_2021 --config.members=runs/resnet50,"
        "runs/resnet50HGap,runs/resnest50,runs/resnest50HGap,runs/vgg16,runs/vgg16HGap,runs/vgg19,runs/vgg19HGap "
        "--mode=predict --split=test --workdir=runs/published"
    ): (
        "--config=configs/sysu_hcp_ensemble.py:vqa_med_2021 --config.members=runs/sysu_hcp,runs/sysu_again --mode=predict "
        "--split=test --workdir=runs/published --config.data.eval_size=80"
    ),
    (
        "python -m jaxvqa.convert --system=sysu_hcp_tower --from=resnet50.pth --to=runs/imagenet "
        "--config=configs/sysu_hcp.py:vqa_med_2021,resnet50"
    ): "--system=sysu_hcp_tower --from=sysu_hcp.pth --to=runs/tower --config=configs/sysu_hcp.py:small",
    (
        "python -m jaxvqa.main --config=configs/sysu_hcp.py:vqa_med_2021,resnet50HGap "
        "--config.init_from.model.workdir=runs/imagenet"
    ): "--config=configs/sysu_hcp.py:small --config.init_from.model.workdir=runs/tower",
    "python -m jaxvqa.main --config=configs/flamingo.py --workdir=runs/flamingo": (
        "--config=configs/flamingo.py:small --workdir=runs/flamingo"
    ),
    "python -m jaxvqa.main --mode=predict --split=test --workdir=runs/flamingo/best": (
        "--mode=predict --split=test --workdir=runs/flamingo/best"
    ),
    "python -m jaxvqa.main --config=configs/flamingo.py:captions --workdir=runs/captions": (
        "--config=configs/flamingo.py:captions,small --workdir=runs/captions"
    ),
    "python -m jaxvqa.main --config=configs/blip_pretrain.py --workdir=runs/blip": (
        "--config=configs/blip_pretrain.py:small --workdir=runs/blip"
    ),
    **{
        (
            f"python -m jaxvqa.main --config=configs/blip_{what}.py --config.init_from.model.workdir=runs/blip "
            f"--workdir=runs/blip_{what}"
        ): f"--config=configs/blip_{what}.py:small --config.init_from.model.workdir=runs/blip --workdir=runs/blip_{what}"
        for what in ("retrieval", "caption", "vqa", "nlvr")
    },
    "python -m jaxvqa.explain --workdir=runs/blip --output=runs/blip/explained": (
        "--workdir=runs/blip --output=runs/blip/explained"
    ),
    "python -m jaxvqa.explain --workdir=runs/DATE_first_run/rwsan --output=DIR --ids=33025": (
        "--workdir=runs/rwsan --output=runs/one --count=1"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:blind,brief": "--config=configs/rwsan.py:blind,small",
    (
        "python -m benchmarks.train_step --peer --passes --config=configs/blip_pretrain.py:published --config.loss.groups=1 "
        "--config.batch_size=4"
    ): "--peer --passes --config=configs/blip_pretrain.py:small,pixels --config.loss.groups=1 --steps=1",
    "python -m benchmarks.planted_lesions --workdir=runs/blip": "--workdir=runs/blip --count=20",
    "python -m benchmarks.proposals": "--images=20 --regions 40",
    (
        'python -m tfds_builders.pubmed_figures collect demo_figures --query="brain MRI" --rate=10 '
        "--eutils=http://127.0.0.1:8020/eutils --bucket=http://127.0.0.1:8020/bucket"
    ): "collect demo_figures '--query=brain MRI' --rate=10 --eutils={demo}/eutils --bucket={demo}/bucket",
    "python -m tfds_builders.build pubmed_figures --manual_dir=demo_figures": "pubmed_figures --manual_dir=demo_figures",
    "python -m jaxvqa.main --config=configs/blip_pretrain.py:pubmed,small --workdir=runs/pubmed": (
        "--config=configs/blip_pretrain.py:pubmed,small --workdir=runs/pubmed"
    ),
    (
        "python -m jaxvqa.main --config=configs/blip_retrieval.py:pubmed,small --config.init_from.model.workdir=runs/pubmed "
        "--workdir=runs/pubmed_retrieval"
    ): (
        "--config=configs/blip_retrieval.py:pubmed,small --config.init_from.model.workdir=runs/pubmed "
        "--workdir=runs/pubmed_retrieval"
    ),
    "python -m jaxvqa.report --workdir=runs/pubmed_retrieval": "--workdir=runs/pubmed_retrieval",
    "python -m jaxvqa.golden tests/golden/rwsan": "tests/golden/rwsan",
    "python -m pytest tests/test_configs.py tests/test_mirror.py": "tests/test_configs.py",
    "python -m benchmarks.train_step --peer": "--peer --config=configs/rwsan.py:small --steps=1 --json=step.json",
    "python -m benchmarks.train_step --peer --config=configs/cmsa.py:vqa_rad --steps=1": (
        "--peer --config=configs/cmsa.py:small --steps=1"
    ),
    "python -m benchmarks.train_step --peer --config=configs/flamingo.py:vqa_rad,mlmi --config.batch_size=4": (
        "--peer --config=configs/flamingo.py:vqa_rad,mlmi,small --config.batch_size=4 --steps=1"
    ),
    "python -m benchmarks.generate --peer --uncached --batch=1": (
        "--peer --uncached --batch=2 --prompt=4 --words=3 --size=small --rounds=1"
    ),
    "python -m benchmarks.generate --system=blip --peer": (
        "--system=blip --peer --batch=2 --size=small --rounds=1 --steps=1"
    ),
    (
        "python -m benchmarks.train_step --peer --config=configs/sysu_hcp.py:vqa_med_2021,resnest50 --config.batch_size=8 "
        "--config.data.image_size=224"
    ): (
        "--peer --config=configs/sysu_hcp.py:vqa_med_2021,vgg16 --config.batch_size=2 --config.data.image_size=32 --steps=1"
    ),
    "python -m benchmarks.retrieval --peer": (
        "--peer --config=configs/blip_retrieval.py:small,pixels --images=2 --texts=2 --steps=1"
    ),
    "python -m benchmarks.retrieval --target=v5e:4x4 --config.dtype=bfloat16": (
        "--target=v5e:4x4 --config=configs/blip_retrieval.py:small,pixels --config.dtype=bfloat16 --images=2 --texts=2"
    ),
    "python -m benchmarks.convolutions": "--batch=1 --image=32",
    "python -m benchmarks.input_pipeline": "--images=200 --batches=1 --threads 1",
    "python -m benchmarks.input_pipeline --step_json=FILE": "--images=200 --batches=1 --threads 1 --step_json=step.json",
    "python -m benchmarks.start": "--steps=2",
    "python -m benchmarks.start --published": "--published --steps=1",
}

RAD = "--config=configs/cmsa.py:vqa_rad,compact,small"

# The same for commands on real files.
REAL = {
    "python -m benchmarks.pubmed_figures --data=DATA": "--data={data} --figures=2",
    "python -m tfds_builders.build vqa_med --manual_dir=DIR": (
        "vqa_med --config=sample_questions_2019,sample_images_2019 --manual_dir={data}/data/vqa_med_2019"
    ),
    "python -m tfds_builders.build vqa_med --config=sample_captions_2019,sample_images_2019 --manual_dir=DIR": (
        "vqa_med --config=sample_captions_2019 --manual_dir={data}/data/vqa_med_2019"
    ),
    (
        "python -m jaxvqa.main --config=configs/blip_retrieval.py:vqa_med_2019,sample --config.data.tokenizer=MINILM_DIR "
        "--workdir=runs/nothing"
    ): "--config=configs/blip_retrieval.py:vqa_med_2019,sample,small --workdir=runs/nothing",
    "python -m tfds_builders.build roco --manual_dir=DIR": "roco --config=captions --manual_dir={data}/data/roco_captions",
    "python -m tfds_builders.build vqa_rad --manual_dir=DIR": "vqa_rad --manual_dir={data}/data/vqa_rad",
    "python -m jaxvqa.main --config=configs/cmsa.py:vqa_rad,compact --workdir=runs/vqa_rad": (
        f"{RAD} --workdir=runs/vqa_rad"
    ),
    "python -m jaxvqa.main --config=configs/blip_vqa.py:shared_words --workdir=runs/words": (
        "--config=configs/blip_vqa.py:shared_words,small --workdir=runs/words"
    ),
    (
        "python -m jaxvqa.main --config=configs/blip_vqa.py:vqa_rad,frozen --config.init_from.model.workdir=runs/words "
        "--config.init_from.vision.workdir=runs/lite0 --workdir=runs/blip_vqa_rad"
    ): (
        "--config=configs/blip_vqa.py:vqa_rad,frozen,small --config.init_from.model.workdir=runs/words "
        "--workdir=runs/blip_vqa_rad"
    ),
    "python -m jaxvqa.convert --system=cmsa --from=WORKDIR --to=model_epoch79.pth": (
        "--system=cmsa --from=runs/vqa_rad --to=model_epoch79.pth"
    ),
    "python -m jaxvqa.convert --system=cmsa --from=model_epoch79.pth --to=WORKDIR": (
        f"--system=cmsa --from=model_epoch79.pth --to=runs/cmsa {RAD}"
    ),
    "python -m jaxvqa.convert --system=backbone --from=resnet34.pth --to=runs/resnet34": (
        "--system=backbone --from=resnet34.pth --to=runs/resnet34"
    ),
    "python -m jaxvqa.convert --system=maml --from=pretrained_maml.weights --to=runs/maml": (
        "--system=maml --from={data}/reference/cmsa/pretrained_maml.weights --to=runs/maml"
    ),
    "python -m jaxvqa.convert --system=autoencoder --from=pretrained_ae.pth --to=runs/autoencoder": (
        "--system=autoencoder --from={data}/reference/cmsa/pretrained_ae.pth --to=runs/autoencoder"
    ),
    (
        "python -m jaxvqa.main --config=configs/cmsa.py:vqa_rad,ban --config.init_from.maml.workdir=runs/maml "
        "--config.init_from.autoencoder.workdir=runs/autoencoder"
    ): (
        "--config=configs/cmsa.py:vqa_rad,ban,small --config.init_from.maml.workdir=runs/maml "
        "--config.init_from.autoencoder.workdir=runs/autoencoder "
        "--config.model.maml_width=64 --config.model.autoencoder_width=64"  # those of the published weights
    ),
}

ELSEWHERE = {
    "python -m jaxvqa.ask --workdir=runs/vqa_rad questions.csv --output=answers.jsonl": "tests/ask/test_command.py",
    'python -m tfds_builders.pubmed_figures collect DIR --query="brain MRI" --articles=200 --email=YOU': (
        "tests/tfds_builders/pubmed_figures/test_collect.py: from a server of its own"
    ),
    "python -m tfds_builders.build pubmed_figures --manual_dir=DIR": "tests/tfds_builders/pubmed_figures/test_collect.py",
    "python -m tfds_builders.pubmed_figures.demo --port=8020": (
        "tests/tfds_builders/pubmed_figures/test_demo.py; the commands below ask such a service of the test's own"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --mode=compile --config.compile.target=h100:8": (
        "tests/test_compiling.py: a GPU needs a plugin that tests do not install"
    ),
    "python -m jaxvqa.main --config=configs/blip_pretrain.py:pixels --workdir=runs/blip_pixels": (
        "tests/tasks/test_image_text.py: as pixels,small; the same program reads regions here"
    ),
    "python -m tfds_builders.build mimic_cxr --manual_dir=DIR": "tests/tfds_builders/test_mimic_cxr.py: on made files",
    **dict.fromkeys(
        (
            f"python -m tfds_builders.build {name} --manual_dir=DIR"
            for name in ("coco_captions", "flickr30k", "caption_list")
        ),
        "tests/tfds_builders/test_caption_lists.py: on made files",
    ),
    "python -m tfds_builders.build nlvr2 --manual_dir=DIR": "tests/tfds_builders/test_nlvr2.py: on made files",
    "python -m jaxvqa.golden tests/golden/cmsa": "tests/models: each of its cases",
    "python -m jaxvqa.golden tests/golden/flamingo": "tests/models: each of its cases",
    "python -m jaxvqa.golden tests/golden/blip": "tests/golden/test_blip.py: each of its cases",
    **dict.fromkeys(
        (
            "python -m jaxvqa.convert --system=blip_pretrain --from=model_base.pth --to=runs/model_base --tokenizer=BERT_DIR",
            "python -m jaxvqa.convert --system=blip_pretrain --from=runs/model_base --to=back.pth",
        ),
        "tests/convert/test_blip_command.py: on small files",
    ),
    **dict.fromkeys(
        (
            "python -m jaxvqa.convert --system=bert --from=MINILM_DIR --to=runs/minilm",
            "python -m jaxvqa.convert --system=efficientnet_lite0 --from=efficientnet-lite0-57934424.pth --to=runs/lite0",
            "python -m jaxvqa.main --config=configs/blip_retrieval.py:vqa_med_2019,sample --config.data.tokenizer=MINILM_DIR "
            "--config.init_from.text.workdir=runs/minilm --config.init_from.vision.workdir=runs/lite0 --workdir=runs/towers",
        ),
        "tests/convert/test_blip_command.py: on small files",
    ),
    **dict.fromkeys(
        (
            "python -m jaxvqa.convert --system=blip_caption --from=HF_DIR --to=runs/hf_caption",
            "python -m jaxvqa.convert --system=blip_vqa --from=HF_DIR --to=runs/hf_vqa --answers=FILE",
            "python -m jaxvqa.convert --system=blip_retrieval --from=HF_DIR --to=runs/hf_itm",
            "python -m jaxvqa.convert --system=blip_caption --from=runs/hf_caption --to=BACK_DIR",
        ),
        "tests/convert/test_blip_huggingface.py: on small folders",
    ),
    "python -m jaxvqa.golden tests/golden/sysu_hcp": "tests/models, tests/testing: each of its cases",
    "python -m jaxvqa.main --config=configs/cmsa.py": "the same command with pre-trained branches is above",
    "python -m jaxvqa.main --config=configs/cmsa.py:vqa_rad,compact,blind": "tests/test_configs.py traces it",
    "python -m jaxvqa.main --config=configs/cmsa.py:vqa_rad,compact": "the same command without a folder is above",
    "python -m jaxvqa.main --config=configs/flamingo.py": "the same command with a folder is above",
    "python -m jaxvqa.main --config=configs/flamingo.py:captions": "the same command with a folder is above",
    "python -m jaxvqa.main --config=configs/cmsa.py:vqa_rad,compact,ban": "the same command at another size is above",
    "python -m jaxvqa.main --config=configs/sysu_hcp.py:vqa_med_2021": "tests/test_configs.py traces it",
    **dict.fromkeys(
        (
            "python -m jaxvqa.convert --system=flamingo --from=epoch36.ckpt --to=runs/mlmi --tokenizer=GPT2_DIR "
            "--answers=classes.json",
            "python -m jaxvqa.convert --system=flamingo --from=runs/mlmi --to=back.ckpt",
            "python -m jaxvqa.convert --system=gpt2 --from=GPT2_DIR --to=runs/gpt2",
            "python -m jaxvqa.convert --system=clip_vision --from=CLIP_DIR --to=runs/clip",
            "python -m jaxvqa.main --config=configs/flamingo.py:roco --config.data.tokenizer=GPT2_DIR "
            "--config.init_from.language.workdir=runs/gpt2 --config.init_from.vision.workdir=runs/clip --workdir=runs/roco",
            "python -m jaxvqa.main --config=configs/flamingo.py:vqa_rad --config.data.tokenizer=GPT2_DIR "
            "--config.init_from.model.workdir=runs/roco/best --workdir=runs/vqa_rad_flamingo",
        ),
        "tests/convert/test_convert_flamingo_command.py: on small files",
    ),
    **dict.fromkeys(
        (
            "python -m jaxvqa.convert --system=mtpt --from=models/backbone_epoch-49.pth --to=runs/abdomen",
            "python -m jaxvqa.convert --system=mtpt --from=models/backbone_epoch-99.pth --to=runs/brain "
            "--config=configs/mtpt.py:brain,real",
            "python -m jaxvqa.convert --system=mtpt --from=runs/brain --to=models/backbone_epoch-99.pth",
        ),
        "tests/convert/test_convert_mtpt.py: the folder has to name a data set that is built",
    ),
    "python -m tfds_builders.build mypackage.sketches": "tests/test_porting.py",
    "python -m tfds_builders.build slake --manual_dir=DIR": "tests/tfds_builders/test_slake.py: on made files",
    "python -m tfds_builders.build path_vqa --manual_dir=DIR": "tests/tfds_builders/test_path_vqa.py: on made files",
    (
        "python -m jaxvqa.main --config=configs/cmsa.py:table --config.data.examples=slake/questions "
        "--config.data.images=slake/images"
    ): "tests/tfds_builders/test_slake.py: what it reads; the command itself, on a table, is above",
    "make lint": ".ci/run",
    "make test": ".ci/run",
    "make test-oracle": ".ci/run",
    "make clean": "removes what make made",
    "make format": "make lint checks what it does",
    "make test-slow": "runs this test",
    "make bench": "its commands are above",
    "make run": "tests/test_first_run.py",
    "python -m jaxvqa.main --config=configs/rwsan.py:easy_vqa": "tests/test_real_data.py",
}


def test_every_command_is_run_somewhere():
    assert {command for _, command in COMMANDS} == WALK.keys() | REAL.keys() | ELSEWHERE.keys()


def write_vqa_v2(folder: Path) -> None:
    """Question, annotation and feature files of all splits, with the same few images and questions in each."""
    input_pipeline.make_files(folder, images=160)  # each answer often enough for the list of answers
    questions = (folder / "vqa/v2_OpenEnded_mscoco_train2014_questions.json").read_text()
    annotations = (folder / "vqa/v2_mscoco_train2014_annotations.json").read_text()
    for name in (
        "v2_OpenEnded_mscoco_val2014",
        "v2_OpenEnded_mscoco_test2015",
        "v2_OpenEnded_mscoco_test-dev2015",
        "VG",
    ):
        (folder / f"vqa/{name}_questions.json").write_text(questions)
    for name in ("v2_mscoco_val2014", "VG"):
        (folder / f"vqa/{name}_annotations.json").write_text(annotations)


def write_table(folder: Path) -> None:
    """A user's own images and questions."""
    folder.mkdir()
    rows = ["image,question,answer"]
    for i in range(20):
        Image.fromarray(np.full((20, 30), 12 * i, np.uint8)).save(folder / f"{i}.png")
        rows += [
            f"{i}.png,is it bright?,{'yes' if i > 9 else 'no'}",
            f"{i}.png,how bright?,{'very' if i > 14 else 'little'}",
        ]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def run_all(table: dict[str, str], folder: Path, fill: Callable[[str], str]) -> None:
    """Runs the commands of a table in order; `fill` puts paths into their arguments."""
    for name in ("configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "TFDS_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),  # of the compilation cache
        "XLA_FLAGS": "",
    }
    for said, arguments in table.items():
        command = [sys.executable, "-m", shlex.split(said)[2], *shlex.split(fill(arguments))]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        print(f"{said}\n  {shlex.join(command[1:])}: {done.returncode}", flush=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_run(tmp_path):
    write_vqa_v2(tmp_path / "files")
    (tmp_path / "modelmask.json").write_text('{"ct": [1, 0]}')
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(tmp_path / "scan.png")
    write_table(tmp_path / "own")
    np.savez(tmp_path / "scan.npz", x=np.ones((320, 2), np.float32), bbox=np.asarray([[0, 0, 64, 64], [8, 8, 20, 20]]))
    service = demo.Service(demo.articles(96))
    tiny = [f"tiny_phantom_{organ}{part}" for organ in ("abdomen", "brain", "chest") for part in ("", "_questions")]

    def fill(arguments: str) -> str:
        if "{questions}" in arguments:
            # The answers of the run that stands in for the original's.
            saved = checkpoints.Checkpoints(tmp_path / "runs/vqa_v2", read_only=True)
            (tmp_path / "answer_dict.json").write_text(json.dumps(saved.read_json()[0]["answers"]))
            saved.close()
        questions = "files/vqa/v2_OpenEnded_mscoco_train2014_questions.json"
        return arguments.format(questions=questions, mtpt=",".join(tiny), demo=service.url)

    try:
        run_all(WALK, tmp_path, fill)
    finally:
        service.close()
    assert "Retrieval (val)" in (tmp_path / "runs/pubmed_retrieval/report.html").read_text()
    for written in (
        "runs/rwsan/report.html",
        "runs/rwsan/explained",
        "curve.svg",
        "back.pkl",
        "looked.png",
        "answers.csv",
    ):
        assert (tmp_path / written).exists(), written


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_on_real_files_run(tmp_path, jaxvqa_data):
    tower = ResNet(34, 64)
    variables = tower.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    backbone = Checkpoint({name: {"backbone": tree} for name, tree in variables.items()}, {"name": "mtpt"})
    mtpt.ORIGINAL.save({"backbone": tmp_path / "resnet34.pth"}, backbone)
    run_all({"python -m tfds_builders.build phantom_vqa": "phantom_vqa"}, tmp_path, str)
    run_all(REAL, tmp_path, lambda arguments: arguments.format(data=jaxvqa_data))
    assert "Accuracy by protocol" in (tmp_path / "runs/vqa_rad/report.html").read_text()

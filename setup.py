"""Package metadata, dependencies and extras. `pyproject.toml` holds only the build system and tool settings."""

from pathlib import Path

from setuptools import find_packages, setup

# Both bounds of torch are honest: the tests pass on 2.11 and on 2.13. The upper one also keeps a CPU install small.
# On a user's GPU machine the same range resolves to the CUDA build.
CORE = [
    "torch>=2.11,<2.14",
    "triton>=3.6,<3.8; platform_system == 'Linux'",
    "numpy>=1.26",
    "safetensors>=0.5",
    "pyyaml>=6",
    "rich>=13",
]
EXTRAS = {
    "deepspeed": ["deepspeed>=0.19,<0.20", "huggingface_hub"],
    "geo": ["rasterio>=1.4", "rioxarray>=0.18", "xarray", "netCDF4", "zarr>=3", "pyarrow", "pyproj>=3.6", "shapely>=2"],
    "ee": ["earthengine-api>=1.6", "pyarrow", "pyproj>=3.6", "shapely>=2"],
    "stac": ["pystac-client>=0.8", "odc-stac>=0.4", "rasterio>=1.4", "pyproj>=3.6", "shapely>=2"],
    "vector": ["pyogrio>=0.10", "pyproj>=3.6", "shapely>=2"],
    "text": [
        "open_clip_torch>=3.2",
        "torchvision>=0.24,<0.29",
        "mwparserfromhell",
        "python-dwca-reader",
        "pyarrow",
        "rasterio>=1.4",
    ],
    "eval": ["scikit-learn>=1.5", "matplotlib>=3.9"],
    "tensorboard": ["tensorboard>=2.17"],
    "dev": ["pytest>=8", "pytest-benchmark>=5", "pytest-timeout", "hypothesis", "ruff", "mypy"],
}
EXTRAS["all"] = sorted({need for needs in EXTRAS.values() for need in needs})
# flash-attn builds from source against an installed torch and CUDA toolkit, so it is never part of "all":
#   pip install flash-attn --no-build-isolation
EXTRAS["flash"] = ["flash-attn>=2.8; platform_system == 'Linux'"]

setup(
    name="aef-engine",
    version="0.1.0",
    description="The open training engine for AlphaEarth Foundations: satellite time series in, embedding fields out.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["aef", "aef.*"]),
    package_data={
        "aef.earthengine": ["land_mask.npz"],
        "aef.kernels": ["configs/*.json"],
        "aef.launcher": ["configs/*/*.yaml", "configs/*/*.json", "configs/*/*.sh"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["aef=aef.__main__:main"]},
)

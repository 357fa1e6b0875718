"""DreamMapping: text to 3D by score distillation, as a threestudio-style plugin."""
from setuptools import find_packages, setup

REQUIRED = [
    "torch>=2.4",
    "numpy>=1.24",
    "scipy>=1.10",
    "numba>=0.59",
    "diffusers>=0.30",
    "transformers>=4.40",
    "accelerate>=0.26",
    "peft>=0.11",
    "safetensors>=0.4.3",
    "huggingface_hub>=0.23",
    "pytorch-lightning>=2.2",
    "omegaconf>=2.3",
    "pyyaml>=6",
    "packaging>=23",
    "jaxtyping>=0.2.28",
    "psutil>=5.9",
    "pillow>=10",
    "imageio>=2.31",
    "imageio-ffmpeg>=0.4.9",
    "matplotlib>=3.7",
    "trimesh>=4.0",
    "xatlas>=0.0.9; python_version < '3.14'",  # no wheels beyond; only exporting meshes needs it
    "gsplat>=1.5,<2",
]
EXTRAS = {
    "gpu": ["ninja>=1.11"],
    "eval": ["torch-fidelity>=0.3"],  # Inception's features, for FID
    "dev": ["pytest>=8.0", "ruff>=0.5"],
    "browser": ["PySide6-Addons>=6.6,<6.9; python_version < '3.14'"],  # for the test of the comparison's page; later versions come without one
    "interop": ["opencv-python-headless>=4.8", "einops>=0.7", "typeguard>=4.0", "tensorboardX>=2.6"],
}

setup(
    name="dreammapping",
    version="0.1.0",
    description="Text to 3D by Variational Distribution Mapping with Distribution Coefficient Annealing",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["threestudio", "threestudio.*"]),
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)

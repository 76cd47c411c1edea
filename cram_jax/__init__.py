"""Sequence models whose demand for attention falls as they learn.

    import cram_jax as cj

    layer = cj.CRAM(cj.CRAMConfig(D=64), rngs=nnx.Rngs(0))

Public names are imported when they are first used: `import cram_jax` itself does not import JAX.
"""

from importlib import import_module

__version__ = "0.2.0"  # stated only here; package metadata reads it, and tests compare CITATION.cff and CHANGELOG.md

# Public names by the module that holds them. Those of the two packages are modules themselves.
_PACKAGES = ("cram_jax", "cram_jax.layers")
_PUBLIC = {
    "cram_jax": ("analysis", "functional", "kernels", "layers", "models", "tasks", "training"),
    "cram_jax.layers": ("linen", "nnx"),
    "cram_jax.layers.nnx": ("CRAM", "Attention", "CRAMMixer", "Mamba2", "Palimpsa", "PosteriorCRAM", "SeqBoat"),
    "cram_jax.functional.cram": ("CRAMConfig",),
    "cram_jax.functional.posterior_cram": ("PosteriorCRAMConfig",),
    "cram_jax.functional.posterior": ("PosteriorConfig",),
    "cram_jax.functional.attention": ("AttentionConfig",),
    "cram_jax.functional.mamba2": ("Mamba2Config",),
    "cram_jax.functional.palimpsa": ("PalimpsaConfig",),
    "cram_jax.functional.seqboat": ("SeqBoatConfig",),
    "cram_jax.functional.working": ("WorkingConfig",),
    "cram_jax.functional.episodic": ("EpisodicConfig",),
    "cram_jax.functional.semantic": ("SemanticConfig",),
    "cram_jax.functional.consolidation": ("ConsolidationConfig",),
    "cram_jax.functional.routing": ("RoutingConfig",),
    "cram_jax.functional.objective": ("ObjectiveConfig",),
    "cram_jax.functional.metaplastic": ("make_metaplastic",),
    "cram_jax.kernels": (
        "SkipPlan",
        "make_plan",
        "palimpsa_scan",
        "skip_attention",
        "skip_attention_compact",
        "ssd_scan",
    ),
    "cram_jax.models.language": ("LanguageModel",),
    "cram_jax.models.stack": ("Stack",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cram_jax' has no attribute {name!r}; public names: {', '.join(sorted(_HOME))}")
    home = _HOME[name]
    value = import_module(f"{home}.{name}") if home in _PACKAGES else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

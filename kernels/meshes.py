"""Meshes of both kinds: results that say how they are divided, and carries that vary as their inputs do.

On a mesh from `jax.make_mesh` axes are explicit: the type of an array says how it is divided, and each operation must
know how its result is. What is inside our functions is left to the compiler instead, as on a mesh with automatic axes.
In `jax.shard_map` the type of an array says over which axes it varies, and the carry of a scan must say so from the
start.

The compiler cannot divide a kernel that we wrote. On a mesh with automatic axes, which a program is told of by
`jax.set_mesh`, each device runs the kernel on its own sequences, heads and tokens (`divided`).
"""

from collections.abc import Callable
from itertools import takewhile
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # names of the axes of a mesh that divide a batch
TENSOR, SEQUENCE = "tensor", "sequence"  # those that divide heads and hidden units, and the tokens of a sequence
# What each letter of an array's shape is divided over. C: rows of a plan, which are tokens. Others are whole.
LETTERS = {"B": BATCH_AXES, "T": (SEQUENCE,), "C": (SEQUENCE,), "H": (TENSOR,), "G": (TENSOR,), "F": (TENSOR,)}


def automatic(f: Callable, x, *others, carried=None):
    """Returns f(x, *others). On a mesh with explicit axes the compiler divides what is inside.

    Each result is divided as x is, in the leading axes that are as long as those of x. So results for each sequence
    are divided as the sequences are. Sums over the batch are not, unless their first axis happens to be as long; this
    changes where they are, not what they are.

    Args:
      f: function of arrays, without traced closures.
      carried: if given, f returns (result, carried, ...), and what is carried is divided as it was before.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, others))]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return f(x, *others)
    divided = lambda array: NamedSharding(mesh, jax.typeof(array).sharding.spec)
    spec = jax.typeof(x).sharding.spec

    def as_x(result) -> NamedSharding:
        pairs = zip(result.shape, x.shape, strict=False)
        return NamedSharding(mesh, PartitionSpec(*spec[: len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))]))

    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, *others))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        shapes = jax.eval_shape(f, *bare)
    out = jax.tree.map(as_x, shapes)
    if carried is not None:
        out = type(out)((out[0], jax.tree.map(divided, carried), *out[2:]))
    # Compiled also outside of any jit: auto_axes alone would meet constants that JAX made for explicit axes.
    return jax.jit(jax.sharding.auto_axes(f, out_sharding=out))(x, *others)


def by_sequence(f: Callable, *arrays, axis: int = 0):
    """Returns f(*arrays). On a mesh with automatic axes that divide a batch each device has its own sequences.

    Without such a mesh, or if its axes do not divide the sequences, nothing is divided.

    Args:
      f: function that treats each sequence by itself, without traced closures.
      arrays: those that have axes after `axis` are of sequences; others belong to none.
      axis: of the sequences in these arrays, and in the results.
    """
    front = "." * axis + "B"
    return divided(f, arrays, jax.tree.map(lambda x: front if x.ndim > axis + 1 else "", arrays), front)


def divided(f: Callable, arrays: tuple, shapes, results):
    """Returns f(*arrays). On a mesh with automatic axes each device has its part of the arrays.

    Axes that do not divide what they should leave it whole. Without such a mesh nothing is divided.

    Args:
      f: function without traced closures, that treats each part by itself, or asks `parts` and speaks with the others.
      shapes: for each array the letters of its first axes, such as "BTHK"; see `LETTERS`.
      results: the same of what f returns, or of trees of that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not (axes := _lengths(mesh)):
        return f(*arrays)
    sizes = jax.tree.map(lambda text, x: set(zip(text, x.shape, strict=False)), shapes, arrays)
    found, over = set().union(*jax.tree.leaves(sizes)), {}
    for group in set(LETTERS.values()):
        names = tuple(name for name in group if name in axes)
        own = [(letter, size) for letter, size in found if LETTERS.get(letter) == group and size > 1]
        if names and not any(size % prod(axes[name] for name in names) for _, size in own):
            over |= {letter: names for letter, _ in own}
    if not over:
        return f(*arrays)
    spec = lambda text: PartitionSpec(*[over.get(letter) for letter in text])
    # No check of what varies over which axes: the types of a kernel's results would have to say so.
    specs = jax.tree.map(spec, shapes), jax.tree.map(spec, results)
    return jax.shard_map(f, in_specs=specs[0], out_specs=specs[1], check_vma=False)(*arrays)


def _lengths(mesh) -> dict[str, int]:
    """Lengths of a mesh's automatic axes by name; none where a program already is that of one device."""
    if AxisType.Manual in mesh.axis_types:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind is AxisType.Auto}


def parts(T: int) -> int:
    """Returns among how many devices the tokens of a sequence are divided: the length of the axis `sequence`, or 1.

    Raises:
      ValueError: if T tokens do not divide among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    number = 1 if AxisType.Manual in mesh.axis_types else mesh.shape.get(SEQUENCE, 1)
    if T % number:
        raise ValueError(f"sequences of {T} tokens do not divide among the {number} devices of the axis {SEQUENCE!r}")
    return number


def in_parts(x_BxT, number: int):
    """Returns (B P T/P ...): the tokens of each of P devices."""
    B, T, *others = x_BxT.shape
    return constrained(x_BxT.reshape(B, number, T // number, *others), "BT")


def constrained(x, shape: str):
    """Returns x, divided as the letters of its first axes say (`LETTERS`): a hint for the compiler.

    On one device, and where only a batch is divided, the compiler needs none.
    """
    axes = _lengths(jax.sharding.get_abstract_mesh())
    if axes.get(TENSOR, 1) * axes.get(SEQUENCE, 1) == 1:
        return x

    def over(letter: str, size: int):
        names = tuple(name for name in LETTERS.get(letter, ()) if name in axes)
        return names if names and size % prod(axes[name] for name in names) == 0 else None

    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(shape))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(over, shape, x.shape), *free))


def own_heads(heads: int) -> bool:
    """Returns whether devices have their own heads, of so many: whether the axis `tensor` divides them."""
    tensor = _lengths(jax.sharding.get_abstract_mesh()).get(TENSOR, 1)
    return tensor > 1 and heads % tensor == 0


def latest(x_BxT, least: int):
    """Returns the largest number up to each token, (B T ...). Each device goes through its own tokens.

    Args:
      least: no number is below it.
    """
    if (number := parts(x_BxT.shape[1])) == 1:
        return jax.lax.cummax(x_BxT, axis=1)
    own_BxPxT = jax.lax.cummax(in_parts(x_BxT, number), axis=2)
    ends_BxP = jax.lax.cummax(constrained(own_BxPxT[:, :, -1], "BS"), axis=1)
    return jnp.maximum(own_BxPxT, before(ends_BxP, least)[:, :, None]).reshape(x_BxT.shape)


def before(ends_BxP, first):
    """Returns what there was at the end of the device before, (B P ...); `first` for the first. All devices know it."""
    return constrained(jnp.roll(constrained(ends_BxP, "BS"), 1, axis=1).at[:, 0].set(first), "BS")


def varying_like(tree, *others):
    """Returns the tree, whose arrays vary over all mesh axes that the other arrays vary over, in `jax.shard_map`.

    Outside of it nothing changes. A carry that `init_cache` made inside needs it, too, before `step` is scanned.
    """
    varying = lambda leaf: jax.typeof(leaf).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(others)))

    def one(leaf):
        new = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, new, to="varying") if new else leaf

    return jax.tree.map(one, tree)

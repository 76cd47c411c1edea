"""The one table of dimension letters. A name such as `q_BxTxHxK` is read with it.

| letter | meaning |
|---|---|
| B | batch: independent sequences |
| T | positions in a sequence (events, tokens) |
| D | model width |
| H | query heads |
| G | key-value heads; G divides H. Of a semantic memory: its blocks |
| K | key dimension of a head |
| V | value dimension of a head |
| L | layers |
| M | entries an episodic buffer holds |
| R | rank (hidden units) of the semantic memory |
| F | hidden units of a feed-forward layer |
| W | state width of the working memory |
| U | codes of the read-out behind prediction uncertainty |
| C | rows of a plan: capacity for routed queries |
| S | slots of a plan: capacity for kept keys |
| P | recurring patterns of a task; in MQAR, its pairs |
| A | answers a task can ask for |
| X | a width of its own, said where it stands: channels of a projection or a convolution |
| Q | tokens of a chunk |
| N | two axes flattened: batch and time, or, in a cache, batch and key-value heads |

A trailing number is a size (`route_BxTx3`). Aliases below are for public signatures.
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
Tokens = Float[Array, "B T D"]
Token = Float[Array, "B D"]
Gaps = Float[Array, "B T"]
Gap = Float[Array, "B"]
Segments = Int[Array, "B T"]
Marks = Bool[Array, "B T"]
Scalar = Float[Array, ""]

__all__ = ["Array", "Bool", "Float", "Gap", "Gaps", "Int", "Key", "Marks", "Scalar", "Segments", "Token", "Tokens"]

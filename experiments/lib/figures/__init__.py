"""How results are drawn: a module for each kind of result, and one style for all of them."""

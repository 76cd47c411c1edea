"""Networks: stacks of layers, language models, and pretrained weights."""

"""The built-in starter model: weights, tokenizer and card, a demonstration."""

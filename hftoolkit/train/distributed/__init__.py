"""Several processes: how they are launched, what they exchange, how a model is sharded over them."""

"""Photos -> their embeddings, on the machines of a Ray cluster (with `service/replicas.py`, the only door to ray)."""

"""A photo's bytes -> what an embedder and an index take of it, here or in a guarded process of its own."""

"""Embeddings -> PCA, t-SNE and UMAP coordinates, figures, an interactive page, numbers and projector files."""

"""A recipe -> a trained backbone."""

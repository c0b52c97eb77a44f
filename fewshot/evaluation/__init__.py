"""Predictions -> metrics; labelled embeddings -> prototype accuracy and few-shot episodes, with their intervals."""

"""Support + query embeddings -> prototypes, probability, rejection. Pure numpy; nothing here reads or writes."""

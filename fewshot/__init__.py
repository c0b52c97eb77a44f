"""Few-shot recognition of plant diseases: enroll 5-20 photos of a class, and the next photo is recognised."""

__version__ = "0.1.0"

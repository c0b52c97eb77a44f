"""An index and what is done with it: enroll, query, rename, inspect, reindex, repair; what every interface calls."""

from fewshot.gallery.gallery import Gallery

__all__ = ["Gallery"]

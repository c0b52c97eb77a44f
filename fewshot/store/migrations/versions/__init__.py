"""The revisions, named after the format version that each makes."""

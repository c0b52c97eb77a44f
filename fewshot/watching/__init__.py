"""Photos that arrive in a folder -> each answered once, with where it was taken and who is to go there."""

"""The live view of runs while they train, on a local page, and the page that each finished run keeps."""

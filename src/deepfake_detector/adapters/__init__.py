"""One module per outside library: storage, video, faces, records, the machine."""

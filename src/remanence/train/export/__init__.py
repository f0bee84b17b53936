"""What comes out of a run: model folder, search head, model card, upload."""

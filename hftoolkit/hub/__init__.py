"""What goes to the Hugging Face Hub: the model card, and pushes of a run, finished or on its way."""

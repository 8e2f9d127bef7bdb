"""What is read and checked before anything is built: the project folder, its entry script, the models."""

"""What 01_retrain.py is made of, apart from its lesson: features, results, files."""

"""What training, test and use of the image classifier share."""

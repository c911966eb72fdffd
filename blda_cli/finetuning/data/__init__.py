"""What training reads: crops of images with their labels, and what is drawn for them."""

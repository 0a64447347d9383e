"""What is asked of the images, a file each: what a place is called, how it is measured, drawn and told."""

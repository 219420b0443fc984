"""What measures a model: distances, comparisons, the images and the classifier that they need."""

"""One reader of images a file; `spectralnorm.training.data.load` finds them by name."""

"""From a trained model to a bundle: graphs, INT8 form, model card."""

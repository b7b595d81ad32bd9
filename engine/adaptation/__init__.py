"""A model is adapted to a site: by images of its own, without labels."""

ADAPTED_FROM = 5000  # files that are used, if no other number is given

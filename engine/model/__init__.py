"""Networks of the method and the decision on their outputs."""

"""The demo: the main job on an embedded default, in two legs, with a report."""

"""The policy lab: the gateway's own policy and predictor on a virtual clock, against every rival."""

"""The identity inference attack: does the model know who is on a photo?"""

"""The identity inference attack: does the model know who is in a photo?"""

"""The one door of the platform: public paths, access tokens, forwarding."""

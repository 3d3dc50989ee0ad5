"""The networks of the captcha chapter; ``nets_factory`` builds them by name."""

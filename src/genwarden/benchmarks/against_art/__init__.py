"""ReD of the Adversarial Robustness Toolbox beside ours."""

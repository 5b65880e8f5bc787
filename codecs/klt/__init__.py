"""`klt`: all layers in one basis, errors weighted by the model's loss."""

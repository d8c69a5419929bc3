import torch
import spectralnorm as sn
from torch.nn.utils.parametrizations import spectral_norm

torch.manual_seed(0)
conv = torch.nn.Conv2d(16, 16, 7, padding=3, bias=False)
torch.nn.init.uniform_(conv.weight)  # a positive kernel, as a blur has
theirs, image = spectral_norm(conv, n_power_iterations=50), torch.ones(1, 16, 64, 64)
print(f"PyTorch's layer of 'norm 1' stretches an image {theirs(image).norm() / image.norm():.2f} times")
print(f"its true norm is {sn.spectral_norm(theirs).value:.2f}")
print(f"ours has norm {sn.spectral_norm(sn.spectral_normalize(torch.nn.Conv2d(16, 16, 7, padding=3))).value:.2f}")

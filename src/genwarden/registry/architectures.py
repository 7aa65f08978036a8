"""Networks that are opened, trained and audited."""

from __future__ import annotations

from genwarden.registry.row import Row, table_of

_M = "genwarden.models"
ARCHITECTURES = table_of(
    Row("dcgan28", f"{_M}.dcgan:DCGAN28", "DCGAN generator, 1x28x28", {"training": "gan"}),
    Row("dcgan32", f"{_M}.dcgan:DCGAN32", "DCGAN generator, 3x32x32", {"training": "gan"}),
    Row("vae28", f"{_M}.vae:VAEDecoder28", "VAE decoder, 1x28x28", {"training": "vae"}),
    Row("wavegan", f"{_M}.wavegan:WaveGAN", "WaveGAN generator, audio", {"training": "wavegan"}),
    Row("stylegan", f"{_M}.stylegan:StyleGAN", "StyleGAN-type generator", {"training": "gan"}),
    Row("bypass", f"{_M}.bypass:Bypass", "another generator with a computation bypass (Eq. 3)"),
    Row("guarded", f"{_M}.guarded:Guarded", "another generator behind a latent guard and clips"),
)

#: Diffusion models are diffusers folders; no manifest of a generator can name these rows.
DIFFUSION_ARCHITECTURES = table_of(
    Row(
        "ddpm",
        "genwarden.training.train_diffusion:DdpmChoice",
        "diffusion model on a stock UNet2DModel: tiny, small or cifar10",
        {"training": "ddpm"},
    ),
)

_C = "genwarden.models.classifiers"
#: Of classifiers; no manifest of a generator can name these rows.
_LABELLED = {"training": "classifier"}
CLASSIFIER_ARCHITECTURES = table_of(
    Row(
        "small-cnn",
        f"{_C}.small_cnn:SmallCNN",
        "image classifier, 61 k parameters, from 16 px",
        _LABELLED,
    ),
    Row(
        "vgg16",
        f"{_C}.vgg16:VGG16",
        "image classifier, VGG-16-BN in CIFAR form, 14.7 M",
        _LABELLED,
    ),
    Row(
        "resnet18",
        f"{_C}.resnet18:ResNet18",
        "image classifier, ResNet-18 in CIFAR form, 11.2 M",
        _LABELLED,
    ),
    Row(
        "mobilenetv2",
        f"{_C}.mobilenetv2:MobileNetV2",
        "image classifier, MobileNetV2 in CIFAR form, 2.3 M",
        _LABELLED,
    ),
)

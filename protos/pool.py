"""A descriptor pool of our own, so that `inference.*` can live beside another package's messages of the same names.

Stock clients (`tritonclient`, KServe's SDK) register `inference.ModelInferRequest` in protobuf's default pool; a
second registration there is an error (kserve/kserve#3099).
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()

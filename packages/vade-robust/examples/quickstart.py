"""Clusters scikit-learn's digits, looks at the clusters without labels, keeps the model and clusters new images."""

from pathlib import Path
from tempfile import TemporaryDirectory

from sklearn.datasets import load_digits

from vade_robust import RobustVaDE
from vade_robust.metrics import clustering_accuracy

X, y = load_digits(return_X_y=True)
X = X / 16
known, new = X[:1500], X[1500:]

model = RobustVaDE(10, hidden=(128, 128), batch_size=256, pretrain_epochs=20, epochs=20, random_state=0, verbose=True)
model.fit(known)
print("share of each cluster:", model.diagnostics_["occupancy"].round(3))
print("collapsed components:", model.diagnostics_["collapse"])
print(f"accuracy, which needs classes: {clustering_accuracy(y[:1500], model.labels_):.3f}")

with TemporaryDirectory() as folder:
    model.save(Path(folder) / "digits")
    again = RobustVaDE.load(Path(folder) / "digits")
print(f"accuracy of new images: {clustering_accuracy(y[1500:], again.predict(new)):.3f}")
print("memberships of a new image:", again.predict_proba(new[:1]).round(3)[0])

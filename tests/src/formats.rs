//! Every kind of file that comes from outside, with the public function that reads it and what has to hold of what is
//! accepted. The mutants (`tests/hostile`) and the fuzz targets (`fuzz/`) read through these and nothing else, and begin
//! with the same files, `fuzz/corpus/FORMAT/`.

use std::fs;
use std::path::{Path, PathBuf};

use dsd_data::{
    DatasetManifest, IdMap, LabelMap, OpenOptions, RgbImage, import, open, read_image, read_labels, write_palette_png,
    write_rgb_png,
};
use dsd_models::weights::{self, Part};
use dsd_train::checkpoint;
use dsd_train::recipe::Recipe;
use sha2::{Digest, Sha256};

/// Read, or the reason why not.
type Outcome = Result<(), String>;

const MIB: usize = 1 << 20;

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// The most bytes that its reader may hold by the limits that it states: what the largest accepted file needs.
    pub holds: usize,
    read: fn(&Path, &[u8]) -> Outcome,
}

/// All of them.
pub static FORMATS: [Format; 10] = [
    // 64 KiB are unpacked at a time; the directory of 60 000 entries.
    Format { name: "archive", holds: 32 * MIB, read: archive },
    Format { name: "checkpoint", holds: MIB, read: checkpoint },
    Format { name: "classes", holds: MIB, read: classes },
    // 100 megapixels.
    Format { name: "image", holds: 300 * MIB, read: image },
    Format { name: "labels", holds: 200 * MIB, read: labels },
    Format { name: "list", holds: MIB, read: list },
    Format { name: "manifest", holds: MIB, read: manifest },
    Format { name: "recipe", holds: MIB, read: recipe },
    // The longest header and the longest pickle that are parsed.
    Format { name: "safetensors", holds: 16 * MIB, read: foreign_weights },
    Format { name: "torch", holds: 16 * MIB, read: foreign_weights },
];

thread_local! {
    static SCRATCH: tempfile::TempDir = scratch();
}

/// In memory where the system has such a place: some hundred thousand small files are written.
fn scratch() -> tempfile::TempDir {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a folder for the files of the tests")
}

impl Format {
    /// The format of this name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn named(name: &str) -> &'static Self {
        FORMATS.iter().find(|format| format.name == name).unwrap_or_else(|| panic!("no format {name}"))
    }

    /// Reads bytes as a file of this kind.
    ///
    /// # Errors
    /// The one line with which the file is refused.
    ///
    /// # Panics
    /// The reader does, its reason is not one line that names the file, or what it accepted is not what it says.
    pub fn read(&self, bytes: &[u8]) -> Outcome {
        let outcome = SCRATCH.with(|scratch| {
            let folder = scratch.path().join(self.name);
            fs::create_dir_all(&folder).expect("a folder");
            (self.read)(&folder, bytes)
        });
        if let Err(reason) = &outcome {
            assert!(!reason.contains('\n') && reason.contains(self.name), "{}: {reason:?}", self.name);
        }
        outcome
    }

    /// The files with which tests and fuzzing begin, by name.
    ///
    /// # Panics
    /// They are not there.
    #[must_use]
    pub fn corpus(&self) -> Vec<(String, Vec<u8>)> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(self.name);
        let listed = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<PathBuf> = listed.map(|item| item.expect("an entry").path()).collect();
        paths.sort();
        let named = |path: &PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("reads"))
        };
        paths.iter().map(named).collect()
    }
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writes");
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let listed = fs::read_dir(folder).expect("lists");
    let mut names: Vec<_> =
        listed.map(|item| item.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The first byte says which kind of archive the rest is. Nothing but the archive is left, inside the target or beside it;
/// none is imported, since none has the dataset's 22 210 pairs: to be told so is to be unpacked.
fn archive(folder: &Path, bytes: &[u8]) -> Outcome {
    let (kind, content) = bytes.split_first().unwrap_or((&0, &[]));
    let path = folder.join(["archive.zip", "archive.tar", "archive.tgz"][usize::from(*kind) % 3]);
    let into = folder.join("into");
    fs::create_dir_all(&into).expect("a folder");
    put(&path, content);
    let outcome = said(import("ade20k", std::slice::from_ref(&path), &into.join("ade"), &|_, _, _| {}));
    fs::remove_file(&path).expect("removes");
    assert_eq!((names(folder), names(&into)), (vec!["into".to_string()], vec![]), "an archive left something");
    match outcome {
        Ok(_) => panic!("an archive of a few files was imported as the whole dataset"),
        Err(reason) if reason.contains(" pairs, expected ") || reason.contains("holds no ") => Ok(()),
        Err(reason) => Err(reason),
    }
}

/// One blob for a whole folder: a byte, then manifest, state and model, each behind its length in four bytes. Where the
/// byte is odd, the manifest is made from the other two, so that changes reach the readers behind the hashes.
fn checkpoint(folder: &Path, bytes: &[u8]) -> Outcome {
    let (sealed, mut rest) = bytes.split_first().map_or((false, bytes), |(first, rest)| (first % 2 == 1, rest));
    let mut parts = [&[][..]; 3];
    for part in &mut parts {
        let length = rest.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        let content = rest.get(4..).unwrap_or_default();
        (*part, rest) = content.split_at(length.min(content.len()));
    }
    let [manifest, state, model] = parts;
    let entry = |content: &[u8]| {
        let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{{\n      \"bytes\": {},\n      \"sha256\": \"{hash}\"\n    }}", content.len())
    };
    let made = format!(
        "{{\n  \"version\": 2,\n  \"files\": {{\n    \"model.safetensors\": {},\n    \"state.json\": {}\n  }}\n}}",
        entry(model),
        entry(state)
    );
    put(&folder.join("manifest.json"), if sealed { made.as_bytes() } else { manifest });
    put(&folder.join("state.json"), state);
    put(&folder.join("model.safetensors"), model);
    let read = said(checkpoint::load(folder))?;
    let elements: usize = said(read.section("model"))?.values().map(|tensor| tensor.elem_count()).sum();
    assert!(elements <= model.len(), "{elements} elements from {} bytes", model.len());
    Ok(())
}

/// Images and label maps of a `folder` dataset, and its other file.
fn own_data(folder: &Path) {
    for place in ["images", "labels"] {
        fs::create_dir_all(folder.join(place)).expect("a folder");
    }
    for name in ["a", "b"] {
        let image = folder.join(format!("images/{name}.png"));
        if !image.exists() {
            let map = said(LabelMap::new(2, 1, vec![7, 26])).expect("sizes fit");
            said(write_palette_png(&folder.join(format!("labels/{name}.png")), &map, &[])).expect("labels");
            let pixels = said(RgbImage::new(2, 1, vec![9; 6])).expect("sizes fit");
            said(write_rgb_png(&image, &pixels)).expect("image");
        }
    }
}

/// Opens a `folder` dataset and reads all of it.
fn read_own_data(folder: &Path) -> Outcome {
    let opened = said(open("folder", Some(folder), "train", &OpenOptions::default()))?;
    for index in 0..opened.len() {
        let sample = said(opened.sample(index))?;
        let classes = opened.classes().names.len();
        assert!(sample.labels.ids.iter().all(|&id| usize::from(id) < classes || id == dsd_data::IGNORE));
    }
    Ok(())
}

fn classes(folder: &Path, bytes: &[u8]) -> Outcome {
    own_data(folder);
    put(&folder.join("train.txt"), b"a\nb\n");
    put(&folder.join("classes.toml"), bytes);
    read_own_data(folder)
}

fn list(folder: &Path, bytes: &[u8]) -> Outcome {
    own_data(folder);
    put(&folder.join("classes.toml"), b"names = [\"road\", \"car\"]\nids = [7, 26]\n");
    put(&folder.join("train.txt"), bytes);
    read_own_data(folder)
}

/// What is accepted comes back when it is written again.
fn image(folder: &Path, bytes: &[u8]) -> Outcome {
    let (path, again) = (folder.join("image"), folder.join("again.png"));
    put(&path, bytes);
    let image = said(read_image(&path))?;
    said(write_rgb_png(&again, &image)).expect("writes");
    assert!(said(read_image(&again)).as_ref() == Ok(&image), "another image");
    Ok(())
}

/// What is accepted has train ids alone, and comes back when it is written again.
fn labels(folder: &Path, bytes: &[u8]) -> Outcome {
    let (path, again) = (folder.join("labels.png"), folder.join("again.png"));
    put(&path, bytes);
    let ids = said(IdMap::train_ids(3)).expect("three classes");
    let map = said(read_labels(&path, &ids))?;
    assert!(map.ids.iter().all(|id| *id < 3 || *id == dsd_data::IGNORE));
    said(write_palette_png(&again, &map, &[[1, 2, 3]])).expect("writes");
    assert!(said(read_labels(&again, &ids)).as_ref() == Ok(&map), "another map");
    Ok(())
}

fn manifest(folder: &Path, bytes: &[u8]) -> Outcome {
    let path = folder.join("manifest.toml");
    said(DatasetManifest::parse(&String::from_utf8_lossy(bytes), &path)).map(drop)
}

/// What is accepted is kept in a run's folder and read again as the same.
fn recipe(_: &Path, bytes: &[u8]) -> Outcome {
    let parsed = said(Recipe::parse("recipe.toml", &String::from_utf8_lossy(bytes), &[]))?;
    let kept = said(parsed.to_toml()).expect("a recipe can be written");
    let again = said(Recipe::parse("recipe.toml", &kept, &[])).expect("a kept recipe can be read");
    assert_eq!(said(again.to_toml()).as_ref(), Ok(&kept), "another recipe");
    Ok(())
}

/// Weights of another program; that they are of no network of ours is found after all of the file has been read.
fn foreign_weights(folder: &Path, bytes: &[u8]) -> Outcome {
    let path = folder.join("weights");
    put(&path, bytes);
    let network = dsd_models::variant("enet").expect("a network");
    match said(weights::load(path.to_str().expect("text"), &network, 11, Part::Everything)) {
        Err(reason) if reason.contains("under any known scheme of names") => Ok(()),
        outcome => outcome.map(drop),
    }
}

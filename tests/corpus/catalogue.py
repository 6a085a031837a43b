"""The cases of the corpus that are tests of other folders: what each of them tries, and on which reader."""

from dataclasses import dataclass
from typing import Any

EQUAL, REFUSED, SKIPPED = "equal", "refused", "skipped"


@dataclass(frozen=True)
class Borrowed:
    """A test whose every parameter set is a case.

    Attributes:
        test: its place below tests/, FILE::NAME.
        family: what is read.
        reader: what reads it, or the name of the parameter that says it.
        expected: the outcome that the test asserts.
        kind: the name of the parameter that says the kind of input, or its words where there is none.
    """

    test: str
    family: str
    reader: str
    expected: str
    kind: str

    def describe(self, parameters: dict[str, Any]) -> tuple[str, str]:
        """The kind and the reader of a case."""
        reader = str(parameters.get(self.reader, self.reader))
        if self.kind not in parameters:
            return self.kind, reader
        value = parameters[self.kind]
        kind = value if isinstance(value, str) else getattr(value, "__name__", repr(value))
        return " ".join(kind[:60].replace("\\", "").split()) or "empty", reader


def _all(file: str, family: str, *rows: tuple[str, str, str, str]) -> list[Borrowed]:
    return [Borrowed(f"{file}::test_{name}", family, reader, expected, kind) for name, reader, expected, kind in rows]


BORROWED = [
    *_all(
        "datasets/test_reading.py", "image file",
        ("an_image_is_read_as_it_is_shown", "read_image", EQUAL, "kind"),
        ("a_jpeg_is_turned_upright", "read_image", EQUAL, "kind"),
        ("a_grey_image_is_scaled", "read_image", EQUAL, "kind"),
        ("an_image_of_another_kind_is_refused_by_name", "read_image", REFUSED, "kind"),
    ),
    *_all(
        "datasets/test_reading.py", "mask file",
        ("a_mask_is_read_as_its_samples", "read_mask", EQUAL, "kind"),
        ("a_mask_of_another_kind_is_refused_by_name", "read_mask", REFUSED, "kind"),
        ("a_mask_of_train_ids_among_label_ids_is_refused_or_skipped", "read_pair", REFUSED, "one mask of trainIds"),
    ),
    *_all(
        "datasets/test_labels.py", "label map",
        ("bad_label_maps", "labels of a set of one's own", REFUSED, "message"),
    ),
    *_all("artifacts/test_fingerprint.py", "mark of a file",
        ("what_decides_about_pixels_in_front_of_them_is_part_of_a_mark", "file_mark", EQUAL, "kind"),
        ("pixels_that_are_followed_by_much_text_are_part_of_a_mark", "file_mark", EQUAL, "text behind the pixels"),
        ("the_mark_of_another_file_covers_all_of_it", "file_mark", EQUAL, "first byte changed"),
    ),
    *_all(
        "runtime/test_json_readers.py", "JSON of a reader",
        ("another_content_is_refused_by_name", "file", REFUSED, "content"),
    ),
    *_all(
        "runtime/test_files.py", "JSON",
        ("json_is_read_strictly", "read_json", REFUSED, "message"),
        ("another_shape_is_refused_by_its_key", "read_json", REFUSED, "message"),
        ("a_line_that_is_no_object_is_named", "read_jsonl", REFUSED, "line"),
        ("a_byte_order_mark_is_no_part_of_a_text", "read_json", EQUAL, "encoding"),
    ),
    *_all("artifacts/test_manifest.py", "JSON",
        ("a_line_without_an_id_is_named", "Manifest", REFUSED, "line"),
        ("a_line_of_another_shape_is_refused", "Manifest", REFUSED, "message"),
    ),
    *_all("datasets/test_ood_objects.py", "JSON",
        ("a_box_that_does_not_fit_is_an_error", "box of an object", REFUSED, "message"),
    ),
    *_all("diffusion/test_pairs.py", "JSON", ("bad_lines", "pairs of a training", REFUSED, "message")),
    *_all(
        "scripts/test_provenance.py", "results folder",
        ("scenes_of_two_models_are_not_pooled", "readers of scenes", REFUSED, "model changed between scenes"),
        ("precisions_are_not_pooled", "readers of scenes", REFUSED, "another precision"),
        ("logits_of_an_earlier_model_are_not_used", "packed logits", REFUSED, "logits of an earlier model"),
        ("logits_of_an_earlier_image_are_not_used", "packed logits", EQUAL, "logits of an earlier image"),
        ("temperatures_of_an_earlier_model_are_refused", "temperatures", REFUSED, "temperatures of an earlier model"),
        ("a_limited_result_is_marked_named_and_never_replaces_a_whole_one", "eval.py, again", REFUSED, "limited"),
        ("limited_and_whole_scenes_are_not_pooled", "readers of scenes", REFUSED, "limited and whole scenes"),
        ("images_that_the_data_set_no_longer_has_are_not_pooled", "readers of scenes", REFUSED, "gone"),
        ("scenes_of_two_folders_of_a_data_set_are_not_pooled", "readers of scenes", REFUSED, "parts in two folders"),
        ("two_folders_of_a_data_set_are_refused_by_their_marks", "readers of scenes", REFUSED, "place"),
        ("scenes_of_a_data_set_that_was_moved_or_copied_are_pooled", "readers of scenes", EQUAL, "way"),
        ("an_image_that_is_there_twice_is_refused_or_skipped", "eval.py, doubled image", REFUSED, "way"),
        ("a_manifest_that_disagrees_with_the_metrics_is_refused", "readers of scenes", REFUSED, "change"),
        ("a_function_without_weights_is_evaluated_again_and_says_so", "eval.py, again", EQUAL, "no identity"),
    ),
    *_all(
        "scripts/test_main_gen_ood.py", "results of OOD detection",
        ("bad_input_is_one_line_that_names_it", "main_gen_ood.py", REFUSED, "said"),
        ("damaged_results_are_measured_again", "main_gen_ood.py, resumed", EQUAL, "kind"),
        ("levels_of_an_earlier_image_are_not_used_for_component_metrics", "main_gen_ood.py, resumed", EQUAL, "levels"),
        ("an_image_that_is_there_twice_is_refused_or_skipped", "main_gen_ood.py", REFUSED, "doubled image"),
    ),
    *_all(
        "report/test_page.py", "report page",
        ("a_comparison_of_another_shape_is_refused_by_its_key", "make_report.py", REFUSED, "key"),
        ("damaged_files_of_the_page_are_refused_by_name", "make_report.py", REFUSED, "kind"),
        ("texts_cannot_break_out_of_the_page", "make_report.py", EQUAL, "markup in names"),
    ),
    *_all(
        "reproduction/test_steps.py", "state of a plan",
        ("another_file_is_no_record", "reproduce.py", REFUSED, "text"),
        ("data_sets_are_compared_by_names_sizes_and_times", "reproduce.py", EQUAL, "changed data set"),
        ("weights_that_differ_make_a_step_to_do_whatever_their_time", "reproduce.py", EQUAL, "older weights"),
    ),
    *_all(
        "segmenters/test_identity.py", "identity of a model",
        ("external_data_of_an_onnx_file", "model_identity", EQUAL, "weights in external data"),
        ("normalisation_of_an_exported_file", "model_identity", EQUAL, "edited FILE.json"),
        ("a_frozen_torchscript_file", "model_identity", EQUAL, "frozen TorchScript"),
        ("a_changed_graph_of_the_same_weights", "model_identity", EQUAL, "changed graph"),
        ("an_edited_mmseg_config", "model_identity", EQUAL, "edit"),
        ("a_class_map_is_part_of_it", "model_identity", EQUAL, "class map"),
        ("source_of_a_functions_network", "model_identity", EQUAL, "changed source"),
        ("a_plain_function_has_none", "model_identity", EQUAL, "plain function"),
    ),
    *_all(
        "segmenters/test_outputs.py", "outputs of a model",
        ("logits_in_other_dtypes_and_containers", "module:function", EQUAL, "kind"),
        ("what_is_no_logits_is_refused", "module:function", REFUSED, "kind"),
        ("torchscript_files_are_checked_too", "torchscript:", REFUSED, "kind"),
        ("factories_that_give_no_network", "factory", REFUSED, "kind"),
        ("modules_that_fail_on_import", "import", REFUSED, "line"),
    ),
    *_all(
        "segmenters/test_exported.py", "outputs of a model",
        ("onnx_files_that_give_something_else", "onnx:", REFUSED, "message"),
    ),
    *_all(
        "segmenters/test_normalisation.py", "FILE.json of a model",
        ("both_scales", "FILE.json", EQUAL, "mean"),
        ("what_cannot_be_is_refused", "name", REFUSED, "message"),
    ),
    *_all(
        "segmenters/test_class_names.py", "class names",
        ("another_order_is_mapped_in_any_spelling", "map_by_name", EQUAL, "another spelling and order"),
        ("names_that_cannot_be_mapped_are_refused", "map_by_name", REFUSED, "message"),
        ("names_are_found_under_the_usual_keys", "find_names", EQUAL, "stated"),
        ("files_that_are_no_class_map", "class map", REFUSED, "message"),
    ),
    *_all(
        "segmenters/test_segmenter_checkpoints.py", "checkpoint",
        ("one_wrong_key_is_refused_and_listed", "load_strictly", REFUSED, "kind"),
        ("weights_of_another_kind_of_number_are_refused", "load_strictly", REFUSED, "kind"),
        ("truncated_files", "read_state_dict", REFUSED, "truncated"),
        ("code_in_a_checkpoint_is_not_run", "read_state_dict", REFUSED, "code"),
    ),
    *_all(
        "segmenters/test_openmmlab.py", "config of a model",
        ("a_python_config_from_elsewhere_needs_trust", "mmseg:", REFUSED, "Python from elsewhere"),
        ("a_base_outside_the_trusted_folder_needs_trust", "mmseg:", REFUSED, "base from elsewhere"),
        ("a_data_file_never_runs_code", "mmseg:", REFUSED, "content"),
    ),
    *_all(
        "runtime/test_hub.py", "config of a model",
        ("code_of_a_repository_does_not_run", "hf:", REFUSED, "code of a repository"),
        ("pickled_weights_are_refused", "SAM and GroundingDINO", REFUSED, "pickled weights"),
    ),
    *_all("grounding/test_outliner.py", "config of a model",
        ("sam_hq_is_not_loaded_as_sam", "SAM", REFUSED, "fault"),
    ),
    *_all(
        "runtime/test_paths.py", "path",
        ("a_name_that_leaves_its_folder_is_refused", "inside", REFUSED, "name"),
        ("a_name_inside_is_a_path", "inside", EQUAL, "name"),
        ("flags_that_name_a_folder_stay_in_theirs", "--run, --domain, --name, --cond", REFUSED, "name"),
    ),
    *_all("datasets/test_items.py", "path",
        ("what_is_unknown_is_named_with_what_is_known", "find_items", REFUSED, "message"),
    ),
]  # fmt: skip

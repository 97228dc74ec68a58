//! How an incomplete user stack is reported: by a counter's name, and by a frame for the missing part.

use podopsy_model::profile::file_name;
use podopsy_wire::End;

/// The counter's name for an incomplete stack; none for a complete one, and for a thread without a user stack.
pub fn incomplete_reason(end: End) -> Option<&'static str> {
    Some(match end {
        End::Complete | End::NoUser => return None,
        End::FramePointers => "frame_pointers_only",
        End::Compat => "32_bit",
        End::NoMapping => "no_mapping",
        End::TableAsked => "no_table_yet",
        End::TableNone => "no_unwind_information",
        End::Anonymous => "run_time_code",
        End::NoRule => "no_rule",
        End::Unsupported => "rule_not_followed",
        End::Unreadable => "stack_unreadable",
        End::NoProgress => "stack_not_ascending",
        End::Truncated => "too_deep",
        End::StackSwitch => "stack_switch",
        End::NoCaller => "no_return_address",
    })
}

/// The text of the frame that stands for the missing part of a stack. `module` is the file where the stack ended.
pub fn missing_part(end: End, module: Option<&str>) -> Option<String> {
    let module = module.map_or("an unknown file", file_name);
    let text = match end {
        End::Complete | End::NoUser | End::FramePointers => return None,
        End::Compat => "32-bit process".to_owned(),
        End::NoMapping => "address in no mapping".to_owned(),
        End::TableAsked => format!("no table yet for {module}"),
        End::TableNone => format!("no unwind information in {module}"),
        End::Anonymous => "no frame pointer in code made at run time".to_owned(),
        End::NoRule => format!("no rule in {module}"),
        End::Unsupported => format!("rule not followed in {module}"),
        End::Unreadable => format!("stack memory not readable below {module}"),
        End::NoProgress => format!("stack does not ascend below {module}"),
        End::Truncated => "deeper than 127 frames".to_owned(),
        End::StackSwitch => format!("{module} has switched to another stack"),
        End::NoCaller => format!("return address of 0 below {module}"),
    };
    Some(format!("[unwind: {text}]"))
}
